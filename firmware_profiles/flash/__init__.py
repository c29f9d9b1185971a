"""Write an image to a medium, never to what the running system lives on."""

"""Facts about boards (power, memory, speed), each with its source."""

"""The only places of the device that touch clock, disk, network and operating system."""

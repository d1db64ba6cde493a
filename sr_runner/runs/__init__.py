"""What stands on disks and in stores, and how it is named."""

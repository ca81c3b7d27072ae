"""What an export says of itself: its record and its page."""

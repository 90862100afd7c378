"""The single way from an image to the restored image."""

"""Opens what scanners and sequencers write: slide images, Space Ranger folders, their geometry."""

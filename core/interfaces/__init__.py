"""What a plugin of each kind must give: Protocols, kept stable. One file a kind."""

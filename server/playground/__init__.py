"""The page at `/`: a chat with the model, and the engine at work beside it. Off with --no-playground."""

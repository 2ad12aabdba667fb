"""`sidecar init`: a first configuration, from what an app says of itself."""

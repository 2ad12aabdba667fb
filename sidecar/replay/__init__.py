"""`sidecar replay`: an access log through the policies, in virtual time."""

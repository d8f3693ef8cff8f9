"""The rules of the service, written against the Protocols in `ports`."""

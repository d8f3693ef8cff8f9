"""Clients of other services: the Protocols of `service.services.ports`, implemented over HTTP."""

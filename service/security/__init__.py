"""Passwords and tokens: the Protocols of `service.services.ports`, implemented with argon2 and JWT."""

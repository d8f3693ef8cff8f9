"""Data access: the Protocols of `service.services.ports`, implemented with SQLAlchemy."""

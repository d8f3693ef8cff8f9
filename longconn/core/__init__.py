"""The pure cores: decisions without a socket, a clock or a greenlet. Time is an argument everywhere."""

"""The rules of the server: what requests may do, and how jobs end. They depend on ports only."""

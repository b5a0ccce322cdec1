"""The APIs of other services, so that programs made for them speak with the voices of this server.

Every request goes through the same services as /v1/synthesize: the same limits, charges, cache and mark.
"""

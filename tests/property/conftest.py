"""What all property tests stand on."""

from hypothesis import HealthCheck, settings

# How long an example takes decides nothing: the machine may be busy, and a sanitizer slows it down.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

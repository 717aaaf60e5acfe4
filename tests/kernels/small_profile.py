"""A pytest plugin: the hypothesis profile `small`, for processors that are emulated."""

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("small", max_examples=5, deadline=None, suppress_health_check=_SLOW)

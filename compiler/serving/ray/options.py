"""`RayOptions`: how many replicas Ray runs, where, and with which models."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Options of an application on Ray Serve.

    Attributes:
        name: name of the deployment.
        min_replicas, max_replicas: how many run; they differ where Ray scales by load.
        target_ongoing_requests: requests at once per replica that Ray scales for.
        max_ongoing_requests: requests at once that a replica is sent; further ones wait in Ray's proxies.
        cores: number of cores of a replica: what Ray reserves for it (`num_cpus`), and what its models use.
        upscale_delay_s, downscale_delay_s: how long the load must call for it before replicas are added or removed.
        drain_s: for requests to end when a replica stops.
        multiplexed: models that a replica keeps loaded, each loaded when it is first asked for, the least recently
            used one unloaded for it (`serve.multiplexed`); 0: all are loaded at startup.
        placement: run replicas only on nodes with the resources that `required_resources` gives for the models.
        otlp: where spans are sent, as of `Tracer`; "": nowhere.
    """

    name: str = "tensorwright"
    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing_requests: float = 16.0
    max_ongoing_requests: int = 256
    cores: int = 1
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    drain_s: float = 30.0
    multiplexed: int = 0
    placement: bool = False
    otlp: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise OptionError(
                f"{self.min_replicas} to {self.max_replicas} replicas is no range",
                "min_replicas may be 0, max_replicas is 1 at least and no less than min_replicas",
            )
        if self.cores < 1 or self.max_ongoing_requests < 1 or not self.target_ongoing_requests > 0:
            raise OptionError("cores, max_ongoing_requests and target_ongoing_requests must be above 0")
        if self.multiplexed < 0 or min(self.upscale_delay_s, self.downscale_delay_s, self.drain_s) < 0:
            raise OptionError("multiplexed, upscale_delay_s, downscale_delay_s and drain_s must not be negative")

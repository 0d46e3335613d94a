"""What a policy loss makes of ratio and advantage: a name, or a mapping with the name as `kind` and its settings."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from burnish.config.schema import Strict
from burnish.errors import ConfigError


class Clip(Strict):
    """PPO's clipped surrogate with two bounds (DAPO), and a second clip if wanted (dual clip)."""

    kind: Literal["clip"] = "clip"
    """PPO, GRPO, DAPO, GSPO."""
    low: float = Field(0.2, gt=0, lt=1)
    """The ratio to the old policy counts down to 1 - low."""
    high: float = Field(0.2, gt=0)
    """The ratio counts up to 1 + high; DAPO uses 0.28."""
    dual: float | None = Field(None, gt=1)
    """A bad completion's term is at most this many times its advantage; null is no second clip."""

    def settings(self) -> dict[str, Any]:
        """Of a PolicyLoss."""
        return {"surrogate": "clip", "clip_low": self.low, "clip_high": self.high, "dual_clip": self.dual}


class Cispo(Strict):
    """MiniMax-M1's: the ratio is a capped weight of the log-probability's gradient."""

    kind: Literal["cispo"] = "cispo"
    """CISPO."""
    high: float = Field(0.2, gt=0)
    """The weight is at most 1 + high."""

    def settings(self) -> dict[str, Any]:
        """Of a PolicyLoss."""
        return {"surrogate": "cispo", "clip_high": self.high}


class Sapo(Strict):
    """A soft gate in the place of a clip."""

    kind: Literal["sapo"] = "sapo"
    """SAPO."""
    positive: float = Field(1.0, gt=0)
    """Temperature where the advantage is positive."""
    negative: float = Field(1.05, gt=0)
    """Temperature where it is not."""

    def settings(self) -> dict[str, Any]:
        """Of a PolicyLoss."""
        return {"surrogate": "sapo", "soft_positive": self.positive, "soft_negative": self.negative}


class Gmpo(Strict):
    """The geometric mean of a sequence's clipped ratios."""

    kind: Literal["gmpo"] = "gmpo"
    """GMPO."""
    low: float = Field(0.4, gt=0)
    """The log of a ratio counts down to -low."""
    high: float = Field(0.4, gt=0)
    """The log of a ratio counts up to high."""

    def settings(self) -> dict[str, Any]:
        """Of a PolicyLoss."""
        return {"surrogate": "gmpo", "clip_low": self.low, "clip_high": self.high}


class Dppo(Strict):
    """A trust region of the token's probability itself."""

    kind: Literal["dppo"] = "dppo"
    """DPPO, binary total variation."""
    trust_region: float = Field(0.15, gt=0, lt=1)
    """Change of a token's probability from which it is held."""

    def settings(self) -> dict[str, Any]:
        """Of a PolicyLoss."""
        return {"surrogate": "dppo", "trust_region": self.trust_region}


class Truncate(Strict):
    """Importance weights are capped."""

    mode: Literal["truncate"] = "truncate"
    """Cap the weight at high."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """The weight of a token, of a sequence (the product), or the geometric mean of a sequence."""
    high: float = Field(2.0, gt=0)
    """Largest weight."""


class Mask(Strict):
    """What lies outside the bounds gets weight 0."""

    mode: Literal["mask"]
    """Weight 0 outside the bounds."""
    level: Literal["token", "sequence", "geometric"] = "token"
    """The weight of a token, of a sequence (the product), or the geometric mean of a sequence."""
    low: float = Field(0.5, ge=0)
    """Smallest weight that counts."""
    high: float = Field(2.0, gt=0)
    """Largest weight that counts."""

    @model_validator(mode="after")
    def _in_order(self) -> "Mask":
        if self.low >= self.high:
            raise ConfigError(f"importance low={self.low} must be below high={self.high}")
        return self


def _named(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


AnySurrogate = Annotated[
    Annotated[Clip | Cispo | Sapo | Gmpo | Dppo, Field(discriminator="kind")], BeforeValidator(_named)
]
Importance = Annotated[Truncate | Mask, Field(discriminator="mode")]

"""What every request in JSON is."""

from pydantic import BaseModel, ConfigDict


class Body(BaseModel):
    """No unknown key, no number as text, no number that is none."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

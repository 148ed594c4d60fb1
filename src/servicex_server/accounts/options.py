"""What an operator says of those who vouch for users: the setting ``issuers``."""

import re

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

WELL_KNOWN = "/.well-known/openid-configuration"
"""What an issuer has its metadata at, below its own URL (OpenID Connect Discovery 1.0, 4)."""

_SAFE = re.compile(r"https://[^/]+(/.*)?|http://(127\.0\.0\.\d+|localhost)(:\d+)?(/.*)?")


class Issuer(BaseModel):
    """Somebody who vouches for users by OpenID Connect."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    """What it is called in addresses: users come back to ``/sign-in/<name>/callback``."""

    title: str = Field(default_factory=lambda given: given["name"], min_length=1, max_length=64)
    """What users know it as. The default is its name."""

    metadata_url: str
    """Where its metadata are: its URL and ``/.well-known/openid-configuration``."""

    client_id: str = Field(min_length=1)
    """What this service is known as there."""

    client_secret: SecretStr | None = None
    """The secret that goes with it; a public client has none."""

    scope: str = Field(default="openid email profile", pattern=r"^openid( .*)?$")
    """What is asked of it."""

    trust_email: bool = False
    """Whether its e-mails count as verified although it does not say so (``email_verified``)."""

    approve: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Claims whose bearers need no administrator's approval, with the values that do:
    ``{groups: [/atlas]}``."""

    audience: tuple[str, ...] = ()
    """Audiences of tokens of this issuer (JWT) that are taken as they are from programs, one of
    which a token has to name, and none of which is ``client_id``: that is the one of ID tokens. The
    default is that none is taken."""

    @field_validator("metadata_url")
    @classmethod
    def _metadata(cls, value: str) -> str:
        if not _SAFE.fullmatch(value):
            raise ValueError("https:// is needed, or http:// to this machine")
        if not value.endswith(WELL_KNOWN):
            raise ValueError(f"the URL of the issuer and {WELL_KNOWN} is needed")
        return value

    @field_validator("audience")
    @classmethod
    def _no_id_tokens(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # nothing else tells an ID token from an access token, for all issuers (OIDC Core 1.0, 2)
        if info.data.get("client_id") in value:
            raise ValueError("tokens for client_id are ID tokens; another audience is needed")
        return value

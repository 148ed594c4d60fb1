"""The options of OpenID Connect providers: the setting ``accounts.issuers``."""

import re

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

WELL_KNOWN = "/.well-known/openid-configuration"
"""Path of a provider's metadata below its own URL (OpenID Connect Discovery 1.0, 4)."""

_SAFE = re.compile(r"https://[^/]+(/.*)?|http://(127\.0\.0\.\d+|localhost)(:\d+)?(/.*)?")


class Issuer(BaseModel):
    """An OpenID Connect provider."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(pattern=r"^[a-z0-9-]{1,32}$")
    """Name of the provider in URLs: users return to ``/sign-in/<name>/callback``."""

    title: str = Field(default_factory=lambda given: given["name"], min_length=1, max_length=64)
    """Name of the provider that users see. The default is ``name``."""

    metadata_url: str
    """URL of the provider's metadata: the provider's URL followed by
    ``/.well-known/openid-configuration``."""

    client_id: str = Field(min_length=1)
    """Client id of this service at the provider."""

    client_secret: SecretStr | None = None
    """Client secret of this service. A public client has none."""

    scope: str = Field(default="openid email profile", pattern=r"^openid( .*)?$")
    """OAuth scopes that the service requests."""

    trust_email: bool = False
    """Treat e-mail addresses from this provider as verified even if it does not send
    ``email_verified``."""

    approve: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Claims and values that let a user in without an administrator's approval, for example
    ``{groups: [/atlas]}``."""

    audience: tuple[str, ...] = ()
    """Audiences of the provider's tokens (JWT) that programs may use as access tokens. A token must
    name one of them. ``client_id`` is not allowed, because it is the audience of ID tokens. By
    default, no such tokens are accepted."""

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

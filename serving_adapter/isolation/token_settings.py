"""What a tenant's own token must be. Apart from what verifies it, which needs `tollbook-adapter[jwt]`."""

from __future__ import annotations

import msgspec


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token must be. `jwks`: a file's path or an https address."""

    jwks: str
    algorithm: str
    issuer: str
    audience: str
    tenant_claim: str = "tenant_id"
    tier_claim: str = "tier"
    regions_claim: str = "regions"

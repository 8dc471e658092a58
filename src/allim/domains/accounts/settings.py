"""The settings of accounts, and of the providers that sign in to them."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from allim.domains.settings import EQUAL, DomainSettings, variable
from allim.variables import PREFIX, Words, http_url

PROVIDERS = ("google", "kakao", "naver")

_Issuer = Annotated[str, AfterValidator(http_url)]


class AccountSettings(DomainSettings):
    """`ALLIM_ACCOUNTS_PER_HOUR`, `ALLIM_ACCOUNTS_REGISTRATION`, `ALLIM_OPERATORS`; three variables for each provider.

    Shape: `public_url` is the origin under which browsers know the service.
    """

    per_hour: int = Field(1000, ge=1, le=1_000_000, json_schema_extra=EQUAL)
    registration: Literal["open", "closed"] = Field("open", json_schema_extra=EQUAL)
    public_url: str | None = Field(None, json_schema_extra=variable("ALLIM_PUBLIC_URL"))
    operators: Words = Field((), json_schema_extra=variable("ALLIM_OPERATORS"))
    google_client_id: str = Field("", json_schema_extra=variable("ALLIM_GOOGLE_CLIENT_ID"))
    google_client_secret: str = Field("", repr=False, json_schema_extra=variable("ALLIM_GOOGLE_CLIENT_SECRET"))
    google_issuer: _Issuer = Field("https://accounts.google.com", json_schema_extra=variable("ALLIM_GOOGLE_ISSUER"))
    kakao_client_id: str = Field("", json_schema_extra=variable("ALLIM_KAKAO_CLIENT_ID"))
    kakao_client_secret: str = Field("", repr=False, json_schema_extra=variable("ALLIM_KAKAO_CLIENT_SECRET"))
    kakao_issuer: _Issuer = Field("https://kauth.kakao.com", json_schema_extra=variable("ALLIM_KAKAO_ISSUER"))
    naver_client_id: str = Field("", json_schema_extra=variable("ALLIM_NAVER_CLIENT_ID"))
    naver_client_secret: str = Field("", repr=False, json_schema_extra=variable("ALLIM_NAVER_CLIENT_SECRET"))
    naver_issuer: _Issuer = Field("https://nid.naver.com", json_schema_extra=variable("ALLIM_NAVER_ISSUER"))

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        for name in PROVIDERS:
            if bool(getattr(self, f"{name}_client_id")) != bool(getattr(self, f"{name}_client_secret")):
                setting = f"{PREFIX}{name.upper()}_CLIENT_"
                raise ValueError(f"{setting}ID, {setting}SECRET: give both, or neither")
            if getattr(self, f"{name}_client_id") and self.public_url is None:
                reason = "the provider sends browsers back there"
                raise ValueError(f"{PREFIX}PUBLIC_URL: required with {PREFIX}{name.upper()}_CLIENT_ID: {reason}")
        return self

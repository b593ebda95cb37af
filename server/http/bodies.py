"""Request bodies: JSON to commands, completely checked before anything is looked up.

msgspec checks types and bounds; what it can not say is checked here: texts are bounded in bytes, not characters, a
price has to fit a double, and the whole body has to be UTF-8 (msgspec does not look into fields that it skips).
Unknown fields are ignored; of a field given twice the last counts. A field that may be left out may not be null.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.json import Decoder

from server.commands import (
    INT_MAX,
    Command,
    CreateProduct,
    CreateUser,
    DeleteProduct,
    DeleteUser,
    PlaceOrder,
    UpdateProduct,
    UpdateUser,
    canonical_price,
)
from server.errors import MillraceError

TEXT_BYTES_MAX = 4096

Integer = Annotated[int, Meta(ge=0, le=INT_MAX)]
Text = Annotated[str, Meta(min_length=1, max_length=TEXT_BYTES_MAX)]
Price = Annotated[int, Meta(ge=0)] | Annotated[float, Meta(ge=0)]

T = TypeVar("T")


class BodyInvalid(MillraceError):
    """The body is not what the contract asks for (400); `detail` names the field where there is one."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class UserBody(Protocol):
    """A checked body of `POST /user`. The password becomes the secret of the command outside."""

    @property
    def id(self) -> int: ...
    @property
    def password(self) -> str | UnsetType: ...
    def command(self, secret: str | None) -> Command: ...


# ---- users ------------------------------------------------------------------------------------------------------


class _CreateUser(Struct, frozen=True, tag_field="command", tag="create"):
    id: Integer
    username: Text
    email: Text
    password: Text | UnsetType = UNSET

    def command(self, secret: str | None) -> CreateUser:
        return CreateUser(self.id, _text("username", self.username), _text("email", self.email), secret)


class _UpdateUser(Struct, frozen=True, tag_field="command", tag="update"):
    id: Integer
    username: Text | UnsetType = UNSET
    email: Text | UnsetType = UNSET
    password: Text | UnsetType = UNSET

    def command(self, secret: str | None) -> UpdateUser:
        return UpdateUser(self.id, _given_text("username", self.username), _given_text("email", self.email), secret)


class _DeleteUser(Struct, frozen=True, tag_field="command", tag="delete"):
    id: Integer
    username: Text
    email: Text
    password: Text | UnsetType = UNSET

    def command(self, secret: str | None) -> DeleteUser:
        return DeleteUser(self.id, _text("username", self.username), _text("email", self.email), secret)


class _ClassicCreateUser(_CreateUser, frozen=True, tag_field="command", tag="create", kw_only=True):
    password: Text


class _ClassicDeleteUser(_DeleteUser, frozen=True, tag_field="command", tag="delete", kw_only=True):
    password: Text


# ---- products ---------------------------------------------------------------------------------------------------


class _CreateProduct(Struct, frozen=True, tag_field="command", tag="create"):
    id: Integer
    name: Text
    description: Text
    price: Price
    quantity: Integer

    def command(self) -> CreateProduct:
        name, description = _text("name", self.name), _text("description", self.description)
        return CreateProduct(self.id, name, description, _price(self.price), self.quantity)


class _UpdateProduct(Struct, frozen=True, tag_field="command", tag="update"):
    id: Integer
    name: Text | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    price: Price | UnsetType = UNSET
    quantity: Integer | UnsetType = UNSET

    def command(self) -> UpdateProduct:
        return UpdateProduct(
            self.id,
            _given_text("name", self.name),
            _given_text("description", self.description),
            None if self.price is UNSET else _price(self.price),
            None if self.quantity is UNSET else self.quantity,
        )


class _DeleteProduct(Struct, frozen=True, tag_field="command", tag="delete"):
    id: Integer
    name: Text
    price: Price
    quantity: Integer

    def command(self) -> DeleteProduct:
        return DeleteProduct(self.id, _text("name", self.name), _price(self.price), self.quantity)


# ---- orders -----------------------------------------------------------------------------------------------------


class _PlaceOrder(Struct, frozen=True):
    command: Literal["place order"]  # a field: msgspec does not ask for the tag of a type that stands alone
    product_id: Integer
    user_id: Integer
    quantity: Annotated[int, Meta(ge=1, le=INT_MAX)]


# ---- decoding ---------------------------------------------------------------------------------------------------

_UserBody = _CreateUser | _UpdateUser | _DeleteUser
_ProductBody = _CreateProduct | _UpdateProduct | _DeleteProduct

_user: Decoder[_UserBody] = Decoder(_UserBody)
_classic_user: Decoder[_UserBody] = Decoder(_ClassicCreateUser | _UpdateUser | _ClassicDeleteUser)
_product: Decoder[_ProductBody] = Decoder(_ProductBody)
_order = Decoder(_PlaceOrder)


def decode_user(raw: bytes, is_classic: bool) -> UserBody:
    """Return the checked body of `POST /user`. Raises `BodyInvalid`."""
    body = _decode(_classic_user if is_classic else _user, raw)
    body.command(None)  # checks the texts
    _given_text("password", body.password)
    return body


def decode_product(raw: bytes) -> Command:
    """Return the command in the body of `POST /product`. Raises `BodyInvalid`."""
    return _decode(_product, raw).command()


def decode_order(raw: bytes) -> PlaceOrder:
    """Return the command in the body of `POST /order`. Raises `BodyInvalid`."""
    body = _decode(_order, raw)
    return PlaceOrder(body.product_id, body.user_id, body.quantity)


def _decode(decoder: Decoder[T], raw: bytes) -> T:
    try:
        if not raw.isascii():
            raw.decode()
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise BodyInvalid(str(error)) from None
    except msgspec.DecodeError as error:
        raise BodyInvalid(f"not valid JSON: {error}") from None
    except UnicodeDecodeError:
        raise BodyInvalid("not valid UTF-8") from None
    except RecursionError:
        raise BodyInvalid("nested too deeply") from None


def _text(name: str, text: str) -> str:
    if not text.isascii() and len(text.encode()) > TEXT_BYTES_MAX:
        raise BodyInvalid(f"Expected at most {TEXT_BYTES_MAX} bytes of UTF-8 - at `$.{name}`")
    return text


def _given_text(name: str, text: str | UnsetType) -> str | None:
    return None if text is UNSET else _text(name, text)


def _price(price: float) -> int | float:
    try:
        return canonical_price(price)
    except OverflowError:
        raise BodyInvalid("Number out of range - at `$.price`") from None

"""Signatures of bundles with a local key, in the form of the OpenSSF's model signing: a file of the
same name with `.sig` next to the bundle.
"""

from pathlib import Path
from types import ModuleType

from topwork.audit.check import Check
from topwork.errors import AuditError


def signature_of(bundle: Path) -> Path:
    """Where a bundle's signature lies."""
    return bundle.with_name(f"{bundle.name}.sig")


def sign(bundle: Path, key: Path) -> Path:
    """Sign a bundle with a private key (PEM, elliptic curve).

    Returns:
        The signature's file.

    Raises:
        AuditError: the extra isn't installed, or the key can't be used.
    """
    library, signature = _library(), signature_of(bundle)
    try:
        signer = library.signing.Config().use_elliptic_key_signer(private_key=key)
        signer.sign(bundle, signature)
    except (OSError, ValueError, TypeError) as error:
        raise AuditError(
            f"{key}: can't be signed with ({error}). Make a key: openssl ecparam -name prime256v1"
            " -genkey -noout -out key.pem"
        ) from error
    return signature


def check_signature(bundle: Path, key: Path) -> Check:
    """Hold a bundle against its signature and the signer's public key.

    Raises:
        AuditError: the extra isn't installed.
    """
    library, signature = _library(), signature_of(bundle)
    if not signature.is_file():
        return Check("bundle", "signature", "broken", f"there is no {signature.name}")
    try:
        verifier = library.verifying.Config().use_elliptic_key_verifier(public_key=key)
        verifier.verify(bundle, signature)
    except (OSError, ValueError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        return Check("bundle", "signature", "broken", f"not by {key.name}, or changed: {text}")
    return Check("bundle", "signature", "holds", f"by the owner of {key.name}")


def _library() -> ModuleType:
    try:
        import model_signing
    except ImportError as error:
        raise AuditError(
            f"signatures need the extra `sign` ({error}): python -m pip install 'topwork[sign]'"
        ) from error
    return model_signing  # type: ignore[no-any-return]

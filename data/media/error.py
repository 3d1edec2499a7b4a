"""What is wrong with media."""


class MediaError(ValueError):
    """Media or a target that does not decode, or is not what the record declares; names expected and given."""

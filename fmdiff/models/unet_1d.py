"""The U-Net for series: several channels over one axis, such as measurements in time or sound."""

from fmdiff.models.unet import UNet


class UNet1d(UNet):
    """The layers of `UNet` along one axis, for series of any length.

    x_t (B, C, L) -> (B, C, L); t, y, s and w as there. Each level has half as many places as the
    one above, rounded up, and a doubled map is cut to the length of the map that it meets. So no
    length needs padding, and odd ones lose no level. Levels of less than 4 places are left out.

    Raises FmdiffError for other data, for a level that does not exist and for a size below 1.
    """

    axes = 2
    name = "unet_1d"

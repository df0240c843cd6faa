"""Lines on what the package's log tells once and for all, and that is no warning about anything."""

import logging

notices = logging.getLogger("numbacalib.notices")

"""Logger for notices, which are shown once and do not warn of a problem."""

import logging

notices = logging.getLogger("numbacalib.notices")

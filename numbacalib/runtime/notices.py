"""Notices of the package's log: what it tells once, and that is no warning about anything."""

import logging

notices = logging.getLogger("numbacalib.notices")

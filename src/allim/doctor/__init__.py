"""`allim doctor` checks settings, database, Redis, a stream and a token, and reports each fault with a remedy."""

from allim.doctor.examination import examine
from allim.doctor.finding import Finding

__all__ = ["Finding", "examine"]

"""`allim doctor`: looks at what allim stands on, and says what is wrong and what to do. This is its door."""

from allim.doctor.examination import examine
from allim.doctor.finding import Finding

__all__ = ["Finding", "examine"]

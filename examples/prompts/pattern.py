# Before:
class TemperatureLog:
    """Readings of one sensor, oldest first."""

    def __init__(self, sensor, maxsize=100):
        self.sensor = sensor
        self.maxsize = maxsize
        self.readings = []

    def add(self, value):
        """Append a reading and drop the oldest one if there are too many."""
        self.readings.append(value)
        if len(self.readings) > self.maxsize:
            self.readings.pop(0)

    def mean(self):
        """Return the mean of all readings, or None if there are none."""
        if not self.readings:
            return None
        return sum(self.readings) / len(self.readings)

    def clear(self):
        """Forget all readings."""
        self.readings.clear()

# After renaming `readings` to `values`:
class TemperatureLog:

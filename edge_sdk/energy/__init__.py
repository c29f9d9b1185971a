"""Where joules come from: sensors, a recording, or a model; each figure says its scope and quality."""

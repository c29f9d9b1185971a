"""The device as a process: configuration, the loop that carries out the participant's effects, enrolment, doctor."""

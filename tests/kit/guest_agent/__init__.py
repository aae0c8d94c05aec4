"""The ECI guest agent as a spot node has it: real wire format, and a file in the place of the cloud's decision."""

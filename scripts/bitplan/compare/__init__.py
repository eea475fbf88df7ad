"""Files compared: speed in llama.cpp, and the table and figure of all plans."""

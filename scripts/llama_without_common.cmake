# Read by CMake right after llama.cpp's project() call (CMAKE_PROJECT_llama.cpp_INCLUDE): llama-cpp-python turns llama.cpp's helper library for
# command-line programs on, which neither it nor bitplan uses, and which takes half of the time of a build.
set(LLAMA_BUILD_COMMON OFF)

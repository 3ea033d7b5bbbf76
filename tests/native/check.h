// The little that a native test needs: a check that prints where and what, and counts.
#pragma once

#include <cstdio>

inline int failures = 0;

#define CHECK(condition, ...)                                            \
  do {                                                                   \
    if (!(condition)) {                                                  \
      std::printf("%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
      std::printf(__VA_ARGS__);                                          \
      std::printf("\n");                                                 \
      if (++failures > 20) return failures;                              \
    }                                                                    \
  } while (0)

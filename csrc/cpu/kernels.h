// What kernels.inl needs, included before any target is set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "../recurrence.h"
#include "isa.h"
#include "panels.h"
#include "planner.h"
#include "team.h"

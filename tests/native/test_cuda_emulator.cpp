// The emulator proves itself: right kernels pass under every schedule, and of each planted mistake it names the fault.
//
// A planted kernel runs in a process of its own (this program with the mistake's name), since sanitizers end the one
// that errs. Which of the three builds has to see what is in the table below.
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "check.h"
#include "cuda_cases.h"
#include "cuda_emulator/sanitizers.h"

using namespace rnn_ext;
using namespace rnn_ext::cuda::test;
using cuda_emulator::Fault;
using cuda_emulator::Schedule;

namespace {

struct Right {
  const char* name;
  Case run;
};
const Right kRight[] = {
    {"block_recurrence", run_block_recurrence<>},
    {"grid_recurrence", run_grid_recurrence<>},
    {"warp_sum", run_warp_sum<>},
    {"hand_over", run_hand_over<>},
    {"copied_sum", run_copied_sum<>},
    {"cluster_sum", run_cluster_sum<>},
    {"counted_sum", run_counted_sum<>},
    {"multiply_half", run_multiply_16bit<half>},
    {"multiply_bfloat16", run_multiply_16bit<bfloat16>},
};

// What has to be seen, and by whom.
enum class Seen {
  fault,  // a Fault, in every build
  wrong,  // wrong results under some schedule, in every build
  race,   // a data race under ThreadSanitizer; wrong results under some schedule in the other builds
  order,  // a data race; in the other builds nothing: every order that the scheduler can make is a right one
  bytes,  // an error of AddressSanitizer's; a Fault in the other builds
  read,   // an error of AddressSanitizer's; wrong results, from a NaN, in the other builds
};

struct Planted {
  const char* name;
  Case run;
  Seen seen;
  const char* text;  // that a Fault must contain
  bool line = true;  // a Fault must name the line that has the mistake's name in a comment
};
const Planted kPlanted[] = {
    {"missing_sync", run_block_recurrence<Bug::missing_sync>, Seen::race, ""},
    {"one_buffer", run_block_recurrence<Bug::one_buffer>, Seen::race, ""},
    {"uninitialised", run_block_recurrence<Bug::uninitialised>, Seen::wrong, ""},
    {"write_past_end", run_block_recurrence<Bug::write_past_end>, Seen::bytes,
     "wrote outside of its dynamic shared memory, at byte 512 of 512", false},
    {"read_past_end", run_block_recurrence<Bug::read_past_end>, Seen::read, ""},
    {"missing_flag_wait", run_grid_recurrence<Bug::missing_flag_wait>, Seen::race, ""},
    {"early_flag", run_grid_recurrence<Bug::early_flag>, Seen::race, ""},
    {"one_global_buffer", run_grid_recurrence<Bug::one_buffer>, Seen::race, ""},
    {"plain_flag", run_grid_recurrence<Bug::plain_flag>, Seen::order, ""},
    {"lost_flag", run_grid_recurrence<Bug::lost_flag>, Seen::fault, "wait in spin_until"},
    {"not_cooperative", run_grid_recurrence<Bug::none, false>, Seen::fault, "blocks have not started", false},
    {"divergent_shuffle", run_warp_sum<Bug::divergent_shuffle>, Seen::fault, "divergent warp"},
    {"ended_lane", run_warp_sum<Bug::ended_lane>, Seen::fault, "thread 31, but that has ended"},
    {"divergent_barrier", run_hand_over<Bug::divergent_barrier>, Seen::fault, "divergent barrier"},
    {"skipped_barrier", run_hand_over<Bug::skipped_barrier>, Seen::fault, "deadlock"},
    {"wrong_count", run_hand_over<Bug::wrong_count>, Seen::fault, "takes barrier 1 for one of"},
    {"second_arrival", run_hand_over<Bug::second_arrival>, Seen::fault, "a second time"},
    {"missing_wait", run_copied_sum<Bug::missing_wait>, Seen::wrong, ""},
    {"short_wait", run_copied_sum<Bug::short_wait>, Seen::wrong, ""},
    {"early_copy", run_copied_sum<Bug::early_copy>, Seen::race, ""},
    {"unaligned_copy", run_copied_sum<Bug::unaligned_copy>, Seen::fault, "not a multiple of 16"},
    {"forgotten_copy", run_copied_sum<Bug::forgotten_copy>, Seen::fault, "never waited for", false},
    {"no_cluster_start", run_cluster_sum<Bug::no_cluster_start>, Seen::fault, "which has not started"},
    {"no_cluster_sync", run_cluster_sum<Bug::no_cluster_sync>, Seen::race, ""},
    {"no_cluster_end", run_cluster_sum<Bug::no_cluster_end>, Seen::fault, "which has ended", false},
    {"missing_warp_sync", run_multiply_16bit<half, Bug::missing_warp_sync>, Seen::race, ""},
    {"missing_fence", run_counted_sum<Bug::missing_fence>, Seen::order, ""},
    {"overlapping_blocks", run_counted_sum<Bug::overlapping_blocks>, Seen::race, ""},
};

constexpr int kSeeds = 3;
constexpr const char* kKernels = "cuda_kernels.cuh:";

// Prints what is seen first, under any schedule; the sanitizers print for themselves.
int run_planted(const char* name) {
  for (const Planted& planted : kPlanted) {
    if (std::strcmp(name, planted.name) != 0) continue;
    for (const Schedule& schedule : cuda_emulator::all_schedules(kSeeds)) {
      cuda_emulator::schedule() = schedule;
      try {
        const std::string wrong = planted.run();
        if (wrong.empty()) continue;
        std::printf("WRONG: %s; schedule: %s\n", wrong.c_str(), schedule.describe().c_str());
      } catch (const Fault& fault) {
        std::printf("FAULT: %s\n", fault.what());
      }
      return 0;
    }
    std::printf("NOTHING\n");
    return 0;
  }
  return 2;
}

std::string output_of(const std::string& command) {
  std::string output;
  FILE* pipe = popen(command.c_str(), "r");
  char buffer[4096];
  while (const size_t n = fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, n);
  pclose(pipe);
  return output;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Whether a report names a line that has the mistake's name in a comment.
bool names_line(const std::string& report, const std::string& mistake, const std::string& path) {
  std::ifstream source(path);
  std::string line;
  for (int n = 1; std::getline(source, line); ++n) {
    const size_t comment = line.rfind("//");
    if (comment != std::string::npos && contains(line.substr(comment), mistake) &&
        contains(report, kKernels + std::to_string(n)))
      return true;
  }
  return false;
}

int check_planted(const char* program, const std::string& source) {
  for (const Planted& planted : kPlanted) {
    const std::string report = output_of(std::string("'") + program + "' " + planted.name + " 2>&1");
    const bool race = contains(report, "WARNING: ThreadSanitizer: data race");
    const bool address = contains(report, "ERROR: AddressSanitizer: use-after-poison");
    const bool fault = contains(report, "FAULT: ") && contains(report, planted.text);
    const bool line = !planted.line || names_line(report, planted.name, source);
    const bool wrong = contains(report, "WRONG: "), nothing = contains(report, "NOTHING");
    bool seen = false;
    switch (planted.seen) {
      case Seen::fault: seen = fault && line && !race; break;
      case Seen::wrong: seen = wrong && !race; break;
      case Seen::race: seen = cuda_emulator::kTsan ? race && contains(report, kKernels) : wrong; break;
      case Seen::order: seen = cuda_emulator::kTsan ? race && contains(report, kKernels) : nothing; break;
      case Seen::bytes: seen = cuda_emulator::kAsan ? address && line : fault && line; break;
      case Seen::read: seen = cuda_emulator::kAsan ? address && line : wrong; break;
    }
    CHECK(seen, "%s is not reported as it should be; instead:\n%s", planted.name, report.c_str());
  }
  return failures;
}

int check_right() {
  for (const Right& right : kRight) {
    for (const Schedule& schedule : cuda_emulator::all_schedules(kSeeds)) {
      cuda_emulator::schedule() = schedule;
      std::string wrong;
      try {
        wrong = right.run();
      } catch (const Fault& fault) {
        wrong = fault.what();
      }
      CHECK(wrong.empty(), "%s, schedule %s: %s", right.name, schedule.describe().c_str(), wrong.c_str());
    }
  }
  return failures;
}

// A kernel's own way out when a flag does not come.
int check_impatience() {
  cuda_emulator::schedule() = {};
  cuda_emulator::schedule().impatient = true;
  const std::string wrong = run_grid_recurrence<Bug::lost_flag>();
  CHECK(wrong == "timed out", "impatient threads, a lost flag: %s", wrong.c_str());
  const std::string right = run_grid_recurrence<>();
  CHECK(right.empty(), "impatient threads, no flag lost: %s", right.c_str());
  return failures;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return run_planted(argv[1]);
  check_right();
  check_impatience();
  check_planted(argv[0], RNN_EXT_TEST_KERNELS);
  std::printf("%d failures\n", failures);
  return failures != 0;
}

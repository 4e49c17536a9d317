// SPDX-License-Identifier: Apache-2.0
#include "tilewise_torch/ops/kept_plan.h"

#include <array>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "tilewise/plan/count.h"
#include "tilewise_torch/ops/plan_tensors.h"

namespace tilewise::ops {
namespace {

struct Kept {
  std::array<int64_t, 2> counts;  // what torch sees
  Plan plan;
  std::vector<TorchTensor> views;
};

// An address is in here only while it is memory of ours, so no other tensor can have it.
class Table {
 public:
  void add(std::unique_ptr<Kept> kept) {
    const std::lock_guard lock(mutex_);
    const void* const address = kept->counts.data();
    table_.insert_or_assign(address, std::move(kept));
  }
  void remove(const void* address) {
    std::unique_ptr<Kept> kept;  // destroyed after the lock: its tensors may be the last of theirs
    const std::lock_guard lock(mutex_);
    const auto found = table_.find(address);
    if (found == table_.end()) return;
    kept = std::move(found->second);
    table_.erase(found);
  }
  Plan find(const void* address) {
    const std::lock_guard lock(mutex_);
    const auto found = table_.find(address);
    return found == table_.end() ? nullptr : found->second->plan;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<const void*, std::unique_ptr<Kept>> table_;
};

// Never destroyed: tensors may outlive static objects.
Table& table() {
  static Table* const one = new Table;
  return *one;
}

}  // namespace

TorchTensor counts_that_keep(const Plan& plan, std::vector<TorchTensor> views) {
  const bool is_on_gpu = device_of(plan).type == Device::Type::cuda;
  auto kept = std::make_unique<Kept>(Kept{{is_on_gpu ? -1 : reads(plan), plan->dense_reads}, plan, std::move(views)});
  int64_t* const data = kept->counts.data();
  const std::array<int64_t, 1> size{2}, stride{1};
  table().add(std::move(kept));
  try {
    return torch::stable::from_blob(data, {size.data(), 1}, {stride.data(), 1}, torch::stable::Device(torch::headeronly::DeviceType::CPU),
                                    torch::headeronly::ScalarType::Long, [](void* address) { table().remove(address); });
  } catch (...) {
    table().remove(data);
    throw;
  }
}

Plan kept_plan(const TorchTensor& counts) { return table().find(counts.const_data_ptr()); }

}  // namespace tilewise::ops

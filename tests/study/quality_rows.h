// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cmath>

namespace tilewise::study {

inline constexpr double kNotRun = NAN;

/// One setting of the quality notes at 16,384 bytes: density and bits per byte above dense, for postgresql-wal.txt (pg) and python-http-client.txt
/// (http), as they were measured with another program (plain PyTorch, f32).
struct QualityRow {
  const char* method;
  const char* options;
  double pg_density, pg_bits, http_density, http_bits;
};

inline constexpr QualityRow kQualityRows[] = {
    {"xattention", "stride=16,threshold=.9,tile=64", .102, .0487, kNotRun, kNotRun},
    {"xattention", "stride=16,threshold=.9,tile=128", .123, .0635, kNotRun, kNotRun},
    {"xattention", "stride=16,threshold=.95,tile=64", .151, .0092, .143, .0191},
    {"xattention", "stride=16,threshold=.97,tile=128", .216, .0037, .207, .0056},
    {"xattention", "stride=16,threshold=.97,tile=64", .194, .0034, .184, .0028},
    {"xattention", "stride=8,threshold=.8,tile=128", .082, .1136, kNotRun, kNotRun},
    {"xattention", "stride=8,threshold=.8,tile=64", .063, .1849, kNotRun, kNotRun},
    {"xattention", "stride=8,threshold=.9,tile=128", .124, .0778, .119, .0876},
    {"xattention", "stride=8,threshold=.9,tile=64", .104, .0718, .099, .0942},
    {"xattention", "stride=8,threshold=.95,tile=64", .155, .0113, kNotRun, kNotRun},
    {"xattention", "stride=8,threshold=.95,tile=128", .177, .0212, kNotRun, kNotRun},
    {"xattention", "stride=8,threshold=.97,tile=64", .200, .0041, kNotRun, kNotRun},
    {"minference", "vertical=100,slash=800", .267, .0036, kNotRun, kNotRun},
    {"minference", "vertical=500,slash=700", .247, .0048, .243, .0031},
    {"minference", "vertical=500,slash=700,aligned=true", .298, .0022, kNotRun, kNotRun},
    {"minference", "vertical=1000,slash=1500", .408, .0007, kNotRun, kNotRun},
    {"minference", "vertical=1000,slash=6096", .815, .0000, .807, -.0000},
    {"flexprefill", "gamma=.9", .126, .1570, kNotRun, kNotRun},
    {"flexprefill", "gamma=.95", .205, .0888, .185, .1528},
    {"flexprefill", "gamma=.99,tau=0", .491, .0210, kNotRun, kNotRun},
    {"mean_pool", "threshold=.9,tile=128", .114, .1060, kNotRun, kNotRun},
    {"mean_pool", "threshold=.9,tile=64", .096, .1461, kNotRun, kNotRun},
    {"a_shape", "init=64,local=1024,tile=64", .135, .0554, kNotRun, kNotRun},
    {"a_shape", "init=64,local=2048,tile=64", .248, .0219, kNotRun, kNotRun},
    {"a_shape", "init=64,local=4096,tile=64", .448, .0115, kNotRun, kNotRun},
    {"random", "density=.2,tile=64", .212, .4639, kNotRun, kNotRun},
    {"oracle", "rule=max,threshold=.05,tile=64", .092, -.0008, kNotRun, kNotRun},
    {"oracle", "rule=sum,threshold=.8,tile=64", .060, .1479, kNotRun, kNotRun},
    {"oracle", "rule=sum,threshold=.9,tile=128", .125, .0542, kNotRun, kNotRun},
    {"oracle", "rule=sum,threshold=.9,tile=64", .111, .0697, .107, .0762},
    {"oracle", "rule=sum,threshold=.95,tile=64", .177, .0218, .170, .0191},
    {"oracle", "rule=sum,threshold=.95,tile=64,force=true", .183, .0214, kNotRun, kNotRun},
};

}  // namespace tilewise::study

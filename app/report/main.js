// SPDX-License-Identifier: Apache-2.0
for (const part of [facts, methodTable, paretoPlot, timePlot, tunePlot, atlas, headDialog, needles, downloads]) part();
document.documentElement.dataset.ready = "yes";

# The target of another guest's initiators. Sourced after rdma-targets.sh.
# shellcheck shell=bash
# shellcheck disable=SC2153

serve() {
    target_start
    host serving "$(srp_line)"
}

until_the_end() { host initiator-ended; }

step device device_up; passed || { report; return; }
step target serve; passed || { report; return; }
step until_the_end until_the_end
report

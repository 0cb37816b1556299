package failover

import "time"

// Tally and Judged give tests the comparison of targets.
type Tally struct{ Good, Bad int64 }

type Judge struct{ records []record }

func NewJudge(n int) *Judge { return &Judge{make([]record, n)} }

func (j *Judge) Step(now time.Duration, percent int, tallies ...Tally) (out []bool) {
	for i, t := range tallies {
		j.records[i].tally = tally{t.Good, t.Bad}
	}
	judge(j.records, percent, now)
	for _, r := range j.records {
		out = append(out, r.out)
	}
	return out
}

// Package borderfuzz sends requests that should not get anywhere through edges that run as in production, and sees
// where each arrives: two zones of two regions, a pair across the zones, rules that change, grants that lapse,
// upstreams that die. It holds nothing but tests; DESIGN.md says what is real in it and what judges.
//
//	make fuzz-border ARGS='-seed 7 -requests 10000000'
package borderfuzz

package table

// Level counts the sets of fields that programs know. An object that an edge must not use without a field that older
// programs do not know says so (Needs): an edge of a lower level quarantines it. It moves by one with each release that
// adds fields; which field came with which level, and whether an edge may do without it, the control plane's model says.
type Level uint32

// Current is the level of this program. 1: of 2026-11-26; 0: any program before, which knows of no levels.
const Current Level = 1

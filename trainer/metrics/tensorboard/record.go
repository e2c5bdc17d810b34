package tensorboard

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Records are framed as in TensorFlow's tensorflow/core/lib/io/record_writer.h:
//
//	uint64 length, uint32 masked CRC-32C of the length, the data, uint32 masked CRC-32C of the data
//
// all little-endian. The mask is that of tensorflow/core/lib/hash/crc32c.h.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const maskDelta = 0xa282ead8

func maskedCRC(data []byte) uint32 {
	crc := crc32.Checksum(data, castagnoli)
	return (crc>>15 | crc<<17) + maskDelta
}

// appendRecord appends the framed data.
func appendRecord(b, data []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(data)))
	b = binary.LittleEndian.AppendUint32(b, maskedCRC(b[at:]))
	b = append(b, data...)
	return binary.LittleEndian.AppendUint32(b, maskedCRC(data))
}

// The numbers of the fields that are written, of the messages in tensorflow/core/util/event.proto and
// tensorflow/core/framework/{summary,tensor,tensor_shape,types}.proto.
const (
	eventWallTime    = 1 // double, seconds
	eventStep        = 2
	eventFileVersion = 3
	eventSummary     = 5
	eventSessionLog  = 7

	sessionLogStatus = 1
	statusStart      = 1

	summaryValue  = 1
	valueTag      = 1
	valueScalar   = 2 // float
	valueTensor   = 8
	valueMetadata = 9

	metadataPlugin = 1
	metadataClass  = 4
	pluginName     = 1
	classTensor    = 2

	tensorType   = 1
	tensorShape  = 2
	tensorString = 8
	typeString   = 7
	shapeDim     = 2
	dimSize      = 1
)

// fileVersion is what an event file begins with. From version 2 on a session's start tells readers to forget.
const fileVersion = "brain.Event:2"

func number(b []byte, field protowire.Number, v int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), uint64(v))
}

func chunk(b []byte, field protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), v)
}

func text(b []byte, field protowire.Number, v string) []byte { return chunk(b, field, []byte(v)) }

// event is an Event of a step, whose content is yet to be appended.
func event(at time.Time, step int) []byte {
	b := protowire.AppendTag(nil, eventWallTime, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, math.Float64bits(float64(at.UnixNano())/1e9))
	if step == 0 {
		return b
	}
	return number(b, eventStep, int64(step))
}

// versionEvent is the first of a file, startEvent the one that begins a session at a step.
func versionEvent(at time.Time) []byte { return text(event(at, 0), eventFileVersion, fileVersion) }

func startEvent(at time.Time, step int) []byte {
	return chunk(event(at, step), eventSessionLog, number(nil, sessionLogStatus, statusStart))
}

// scalar is a Summary's value.
type scalar struct {
	tag   string
	value float64
}

func scalarsEvent(at time.Time, step int, scalars []scalar) []byte {
	var summary []byte
	for _, s := range scalars {
		v := protowire.AppendTag(text(nil, valueTag, s.tag), valueScalar, protowire.Fixed32Type)
		summary = chunk(summary, summaryValue, protowire.AppendFixed32(v, math.Float32bits(float32(s.value))))
	}
	return chunk(event(at, step), eventSummary, summary)
}

// textEvent is for TensorBoard's text plugin, which shows a tensor of one string as Markdown.
func textEvent(at time.Time, step int, tag, markdown string) []byte {
	shape := chunk(nil, shapeDim, number(nil, dimSize, 1))
	tensor := text(chunk(number(nil, tensorType, typeString), tensorShape, shape), tensorString, markdown)
	metadata := number(chunk(nil, metadataPlugin, text(nil, pluginName, "text")), metadataClass, classTensor)
	value := chunk(chunk(text(nil, valueTag, tag), valueTensor, tensor), valueMetadata, metadata)
	return chunk(event(at, step), eventSummary, chunk(nil, summaryValue, value))
}

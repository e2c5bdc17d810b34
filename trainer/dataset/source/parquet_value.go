package source

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/format"
)

// encoder appends a value that is not null as JSON.
type encoder func(text []byte, v *parquet.Value) ([]byte, error)

// newEncoder finds the encoder of a leaf's type: by the logical type, by the older words for it, or the bare type.
func newEncoder(e *format.SchemaElement) (encoder, error) {
	physical := parquet.Kind(e.Type.V)
	wrong := func(what any) (encoder, error) {
		return nil, fmt.Errorf("type %v of %v is not supported; leave the column out or convert it when the file is written", what, physical)
	}
	logical := e.LogicalType.Value
	if logical == nil && e.ConvertedType.Valid {
		if logical = modern(e); logical == nil {
			return wrong(e.ConvertedType.V)
		}
	}
	bytes := physical == parquet.ByteArray || physical == parquet.FixedLenByteArray
	switch l := logical.(type) {
	case nil:
		return bare(physical)
	case *format.NullType:
		return func(text []byte, _ *parquet.Value) ([]byte, error) { return append(text, "null"...), nil }, nil
	case *format.StringType, *format.EnumType:
		if bytes {
			return appendText, nil
		}
	case *format.JsonType:
		if bytes {
			return appendJSON, nil
		}
	case *format.UUIDType:
		if physical == parquet.FixedLenByteArray && e.TypeLength.V == 16 {
			return appendUUID, nil
		}
	case *format.IntType:
		if physical == parquet.Int32 || physical == parquet.Int64 {
			return integers(physical, l.IsSigned), nil
		}
	case *format.DecimalType:
		return decimals(physical, int(l.Scale))
	case *format.DateType:
		if physical == parquet.Int32 {
			return appendDate, nil
		}
	case *format.TimeType:
		if l.Unit.Value != nil && (physical == parquet.Int32 || physical == parquet.Int64) {
			return timesOfDay(l.Unit.Value.Duration(), physical), nil
		}
	case *format.TimestampType:
		if l.Unit.Value != nil && physical == parquet.Int64 {
			return timestamps(l.Unit.Value.Duration(), l.IsAdjustedToUTC), nil
		}
	}
	return wrong(logical)
}

// modern translates the older words for logical types; nil for those that are not supported.
func modern(e *format.SchemaElement) format.LogicalTypeValue {
	millis, micros := format.TimeUnit{Value: &format.MilliSeconds{}}, format.TimeUnit{Value: &format.MicroSeconds{}}
	switch e.ConvertedType.V {
	case deprecated.UTF8:
		return &format.StringType{}
	case deprecated.Enum:
		return &format.EnumType{}
	case deprecated.Json:
		return &format.JsonType{}
	case deprecated.Decimal:
		return &format.DecimalType{Scale: e.Scale.V, Precision: e.Precision.V}
	case deprecated.Date:
		return &format.DateType{}
	case deprecated.TimeMillis:
		return &format.TimeType{IsAdjustedToUTC: true, Unit: millis}
	case deprecated.TimeMicros:
		return &format.TimeType{IsAdjustedToUTC: true, Unit: micros}
	case deprecated.TimestampMillis:
		return &format.TimestampType{IsAdjustedToUTC: true, Unit: millis}
	case deprecated.TimestampMicros:
		return &format.TimestampType{IsAdjustedToUTC: true, Unit: micros}
	case deprecated.Int8, deprecated.Int16, deprecated.Int32, deprecated.Int64:
		return &format.IntType{IsSigned: true}
	case deprecated.Uint8, deprecated.Uint16, deprecated.Uint32, deprecated.Uint64:
		return &format.IntType{}
	}
	return nil
}

// bare is the encoder of a type that nothing more is said of.
func bare(physical parquet.Kind) (encoder, error) {
	switch physical {
	case parquet.Boolean:
		return func(text []byte, v *parquet.Value) ([]byte, error) { return strconv.AppendBool(text, v.Boolean()), nil }, nil
	case parquet.Int32, parquet.Int64:
		return integers(physical, true), nil
	case parquet.Int96:
		return appendInt96, nil
	case parquet.Float:
		return func(text []byte, v *parquet.Value) ([]byte, error) { return appendFloat(text, float64(v.Float()), 32) }, nil
	case parquet.Double:
		return func(text []byte, v *parquet.Value) ([]byte, error) { return appendFloat(text, v.Double(), 64) }, nil
	case parquet.ByteArray, parquet.FixedLenByteArray:
		return appendBytes, nil
	}
	return nil, fmt.Errorf("type %v is not supported", physical)
}

func integers(physical parquet.Kind, signed bool) encoder {
	return func(text []byte, v *parquet.Value) ([]byte, error) {
		switch {
		case signed && physical == parquet.Int32:
			return strconv.AppendInt(text, int64(v.Int32()), 10), nil
		case signed:
			return strconv.AppendInt(text, v.Int64(), 10), nil
		case physical == parquet.Int32:
			return strconv.AppendUint(text, uint64(v.Uint32()), 10), nil
		}
		return strconv.AppendUint(text, v.Uint64(), 10), nil
	}
}

// What JSON cannot say as a number or a text becomes an object that says it: where nothing reads the column it does no harm, and a format that
// does read it finds neither number nor text there.

// How such objects begin.
const (
	BytesOpen = `{"base64":"`
	FloatOpen = `{"float":"`
)

// appendFloat spells a float with as few digits as give it back, as encoding/json does; NaN is {"float":"NaN"}.
func appendFloat(text []byte, f float64, bits int) ([]byte, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return fmt.Appendf(text, `%s%v"}`, FloatOpen, f), nil
	}
	form := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		form = 'e'
	}
	return strconv.AppendFloat(text, f, form, -1, bits), nil
}

func appendText(text []byte, v *parquet.Value) ([]byte, error) {
	value := v.ByteArray()
	if err := checkUTF8(value); err != nil {
		return text, err
	}
	return appendString(text, value), nil
}

// appendBytes is for columns that are not said to be text, but are with many writers: others are {"base64":"..."}.
func appendBytes(text []byte, v *parquet.Value) ([]byte, error) {
	value := v.ByteArray()
	if utf8.Valid(value) {
		return appendString(text, value), nil
	}
	if base64.StdEncoding.EncodedLen(len(value)) > MaxRowBytes {
		return text, fmt.Errorf("the row is %w", errFull)
	}
	text = base64.StdEncoding.AppendEncode(append(text, BytesOpen...), value)
	return append(text, `"}`...), nil
}

func appendJSON(text []byte, v *parquet.Value) ([]byte, error) {
	value := v.ByteArray()
	if err := checkUTF8(value); err != nil {
		return text, err
	}
	if !json.Valid(value) {
		return text, fmt.Errorf("the value should be JSON, and is not: %s", excerpt(value))
	}
	return append(text, value...), nil
}

func appendUUID(text []byte, v *parquet.Value) ([]byte, error) {
	b := v.ByteArray()
	text = append(text, '"')
	for i, part := range [][]byte{b[:4], b[4:6], b[6:8], b[8:10], b[10:]} {
		if i > 0 {
			text = append(text, '-')
		}
		text = hex.AppendEncode(text, part)
	}
	return append(text, '"'), nil
}

// decimals spells decimals as numbers with scale digits after the point.
func decimals(physical parquet.Kind, scale int) (encoder, error) {
	const maxScale = 1000 // far above any precision that is in use
	if scale < 0 || scale > maxScale {
		return nil, fmt.Errorf("decimals with the scale %d are not supported", scale)
	}
	switch physical {
	case parquet.Int32:
		return func(text []byte, v *parquet.Value) ([]byte, error) {
			return appendDecimal(text, strconv.FormatInt(int64(v.Int32()), 10), scale), nil
		}, nil
	case parquet.Int64:
		return func(text []byte, v *parquet.Value) ([]byte, error) {
			return appendDecimal(text, strconv.FormatInt(v.Int64(), 10), scale), nil
		}, nil
	case parquet.ByteArray, parquet.FixedLenByteArray:
		return func(text []byte, v *parquet.Value) ([]byte, error) {
			return appendDecimal(text, twosComplement(v.ByteArray()).String(), scale), nil
		}, nil
	}
	return nil, fmt.Errorf("decimals of %v are not supported", physical)
}

// twosComplement reads a signed integer, big end first.
func twosComplement(b []byte) *big.Int {
	n := new(big.Int).SetBytes(b)
	if len(b) > 0 && b[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	return n
}

// appendDecimal puts the point before the last scale digits of an integer.
func appendDecimal(text []byte, digits string, scale int) []byte {
	if digits[0] == '-' {
		text, digits = append(text, '-'), digits[1:]
	}
	if scale == 0 {
		return append(text, digits...)
	}
	if missing := scale + 1 - len(digits); missing > 0 {
		digits = string(slices.Repeat([]byte{'0'}, missing)) + digits
	}
	point := len(digits) - scale
	text = append(append(text, digits[:point]...), '.')
	return append(text, digits[point:]...)
}

const (
	dateLayout      = `"2006-01-02"`
	timeLayout      = `"15:04:05.999999999"`
	timestampLayout = `"2006-01-02T15:04:05.999999999"`
	utcLayout       = `"2006-01-02T15:04:05.999999999Z"`
)

var errYear = errors.New("the year is not within 0 to 9999")

func appendTime(text []byte, t time.Time, layout string) ([]byte, error) {
	if y := t.Year(); y < 0 || y > 9999 {
		return text, errYear
	}
	return t.AppendFormat(text, layout), nil
}

func appendDate(text []byte, v *parquet.Value) ([]byte, error) {
	return appendTime(text, time.Unix(int64(v.Int32())*secondsOfDay, 0).UTC(), dateLayout)
}

const secondsOfDay = 24 * 60 * 60

func timesOfDay(unit time.Duration, physical parquet.Kind) encoder {
	return func(text []byte, v *parquet.Value) ([]byte, error) {
		n := v.Int64()
		if physical == parquet.Int32 {
			n = int64(v.Int32())
		}
		if day := int64(24 * time.Hour / unit); n < 0 || n >= day {
			return text, fmt.Errorf("the time of day %d is not within 0 to %d", n, day-1)
		}
		return time.Unix(0, n*int64(unit)).UTC().AppendFormat(text, timeLayout), nil
	}
}

func timestamps(unit time.Duration, utc bool) encoder {
	layout := timestampLayout
	if utc {
		layout = utcLayout
	}
	perSecond := int64(time.Second / unit)
	return func(text []byte, v *parquet.Value) ([]byte, error) {
		seconds, rest := v.Int64()/perSecond, v.Int64()%perSecond
		return appendTime(text, time.Unix(seconds, rest*int64(unit)).UTC(), layout)
	}
}

// appendInt96 reads the timestamps of older writers: nanoseconds of the day, and the Julian day. Nothing says whether
// they are adjusted to UTC.
func appendInt96(text []byte, v *parquet.Value) ([]byte, error) {
	const julianDayOfUnix = 2440588
	words := v.Int96()
	var b [8]byte
	binary.LittleEndian.PutUint32(b[:], words[0])
	binary.LittleEndian.PutUint32(b[4:], words[1])
	nanos := int64(binary.LittleEndian.Uint64(b[:]))
	if nanos < 0 || nanos >= int64(24*time.Hour) {
		return text, fmt.Errorf("the time of day %d ns is not within a day", nanos)
	}
	return appendTime(text, time.Unix((int64(words[2])-julianDayOfUnix)*secondsOfDay, nanos).UTC(), timestampLayout)
}
